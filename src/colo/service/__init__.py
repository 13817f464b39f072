"""What a service manager wants of a colo that runs for good."""
