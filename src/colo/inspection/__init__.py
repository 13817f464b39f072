"""What a migration stream or a store holds, and how two of them differ."""
