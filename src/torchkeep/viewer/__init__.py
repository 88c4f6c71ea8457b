"""The page in the browser: what `torchkeep view` serves to this machine alone, or writes as one file.

`subject.py` holds what may be looked at, `answers.py` turns it into plain values, `page.py` puts the page together from
`assets/`; `server.py` serves both, `export.py` writes both into one file. None of it writes to what it looks at.
"""
