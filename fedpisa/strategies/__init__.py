"""The server's side of the algorithms: one file each."""
