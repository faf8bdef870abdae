"""A model's chain in the formats that other tools read: a CycloneDX bill of materials, Croissant.

Written from the model's record and from artifacts that the audit verified; what is not known is left out. The bytes
depend on these alone, not on folder, time or locale. Writing needs no library of the formats; tests validate with them.
"""
