"""What colo says of itself: figures, and how they are shown."""
