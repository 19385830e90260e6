"""A small English world whose truth is known exactly: its content, requests, corpus and grader."""
