"""Studies: what a file asks for, its runs carried out by one process or several, and what came out."""
