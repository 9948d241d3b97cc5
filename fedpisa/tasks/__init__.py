"""What is learned, as functions of flat vectors."""
