"""A script per tool, each run in its tool's environment: samples, a model and a recipe in, a model's folder out.

Apart from plumbline.py they import nothing of Plumbline.
"""
