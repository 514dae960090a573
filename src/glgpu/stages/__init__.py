"""The story, one stage a file and a screen; a command, its stage, its CI job and its file share one name."""
