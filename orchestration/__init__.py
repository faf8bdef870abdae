"""What runs by itself: definitions, checks, jobs, sensors."""
