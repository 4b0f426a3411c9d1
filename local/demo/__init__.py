"""A campaign launch on the local system: what is put in is known, so what comes out can be checked."""
