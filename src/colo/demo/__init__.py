"""The demonstration: a small guest of our own, protected, killed and taken over."""
