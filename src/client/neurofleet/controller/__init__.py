"""What runs on the head besides ipyparallel: connection files, the controller's watch."""
