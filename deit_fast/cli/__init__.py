"""The command line: words in, printed results out. Only the commands that need torch import it.

main.py parses the words and turns errors into lines and exit statuses. commands.py has a function for each command.
show.py and zoo_table.py make the text of `deit-fast show` and `deit-fast zoo`.
"""
