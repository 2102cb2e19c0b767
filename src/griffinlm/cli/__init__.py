"""The command `griffin`: one thin file a command, imported when it is asked for."""
