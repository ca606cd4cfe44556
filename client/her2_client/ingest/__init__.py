"""Source images -> the standardised cache; the only part of a client that reads DICOM.

    cases.csv, lesions.csv -> run.py   all cases, in order; what is unchanged is not done again
                              case.py  one modality of one case
                                planar/   CC, MLO -> (4, S, S); B-mode -> (1, S, S)
                                mri/      DCE-MRI -> (phases, V, V, V)
                                privacy/  no name in the pixels, or a person has looked
                              -> her2_client.cache_writer
                              summary.py, quality/  what was used, what not, and why
    duke/                     a public collection -> cases.csv, lesions.csv

How each modality is standardised, and where its rules come from, stands at the head of its
module. All arrays are float16 within [-5, 5]; pixels.py has the arithmetic. Every image ends
accepted, set aside, quarantined or refused (outcome.py), never dropped without a word.
"""
