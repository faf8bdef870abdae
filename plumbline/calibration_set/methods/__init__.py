"""What the strategies are built of: searches, clusters, scores. A strategy is in strategies/, one file each."""
