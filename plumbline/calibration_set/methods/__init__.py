"""Building blocks of the strategies: searches, clusters, scores. The strategies are in strategies/, one file each."""
