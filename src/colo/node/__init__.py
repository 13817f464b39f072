"""The two ends as running programs: thin shells around the machines, the stream and the store."""
