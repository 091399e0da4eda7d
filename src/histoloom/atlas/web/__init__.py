"""The atlas as a web page on this computer: HTTP in front of the project's functions, and nothing else."""
