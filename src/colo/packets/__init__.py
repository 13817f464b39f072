"""The guest's outgoing packets: held until the checkpoint that covers them is safe.  No I/O."""
