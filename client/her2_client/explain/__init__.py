"""Why a model scores a case as it does: what each picture adds, and which places of it."""
