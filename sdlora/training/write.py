"""The trained adapter as a file that every tool reads, with the truth about how it was made."""
