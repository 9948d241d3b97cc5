"""Studies: read a study file, run it in one process or several, and summarize the results."""
