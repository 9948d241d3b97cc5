"""A SuperLink and its nodes: certificates and keys, processes on this machine, commands for other machines."""
