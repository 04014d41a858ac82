"""Buckets."""

from tests import gcs, s3

s3_port, bucket = s3.s3_port, s3.bucket
gs_port, gs_bucket = gcs.gs_port, gcs.gs_bucket
