"""How packaging fails: one sentence for the person who asked, naming their own setting or file and the way out."""


class PackagingRefused(Exception):
    """A job, a file or a setting cannot be used as it is; the text says why and what to do. No traceback is shown."""
