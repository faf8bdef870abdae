"""How well a set represents production: distances, each beside what random draws of the same size get.

A raw distance says little: at the size of a calibration set, even a perfect draw is some way off. So every metric
comes with its null, the same statistic for same-size random draws from the pool, as percentile and ratio; and a set is
called farther than random only where the whole panel says so at a rate of error of 5 %.

One file per aspect: lengths, domains, tokens, embeddings, classifier, activations; `null` holds the yardstick,
`panel` puts them together.
"""
