"""Who is to run the VM, and the words in which two hosts speak about it.  No I/O, no clock."""
