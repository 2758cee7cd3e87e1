"""The commands, one module each; `app.command.COMMANDS` names them and nothing is imported before its turn."""
