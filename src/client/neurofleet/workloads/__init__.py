"""What runs on a fleet."""
