"""Kills at random moments, full disks, two writers at once: what they leave, expected and found."""
