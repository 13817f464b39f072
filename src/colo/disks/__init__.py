"""The replica of a disk on the secondary host: as of the last whole checkpoint, like the memory."""
