"""The command line: words in, printed results out. torch is imported only by the commands that need it.

main.py parses the words and turns errors into lines and exit statuses, commands.py has a function for each command,
show.py and zoo_table.py write what `deit-fast show` and `deit-fast zoo` print.
"""
