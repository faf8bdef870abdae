"""`python -m plumbline`: the command line, by the interpreter that runs this."""

from plumbline.cli.main import main

main()
