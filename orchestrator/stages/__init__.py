"""One function per kind of stage."""
