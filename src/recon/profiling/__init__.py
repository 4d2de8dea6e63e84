"""What capture costs, whether its memory comes back, and who holds what does not."""
