"""Snapshots: what lies in a store, and the protocol by which it gets there.

store      store.json: what the store is of
records    a finished attempt of a split; how records of a file become its shards
table      records of many splits, by column
journal    the driver's copy of records
manifest   a snapshot and its two tables
draft      the tables of a snapshot to be
lease      one run at a time
commit     from records to a published manifest; the protocol as a table
reader     a snapshot as a dataset
"""
