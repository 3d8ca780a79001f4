"""What drivers of databases share: values, names, batches of records, page tokens, streams and bulk inserts.

A driver brings its tables and the codecs of its columns (`model`); nothing here knows a database.
"""
