"""One protection, from its first copy to its end: the shells around the protocol's machines."""
