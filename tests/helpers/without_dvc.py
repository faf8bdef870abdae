"""The command line in a process that cannot import DVC, as where it no longer installs."""

BLOCKED = """
import sys
sys.modules |= {"dvc": None, "dvc_data": None, "dvc_objects": None, "dvc_s3": None}
from plumbline.cli.main import main
main()
"""
