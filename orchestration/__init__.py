"""What runs by itself: definitions, checks, sensors."""
