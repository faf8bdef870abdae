-- PostgreSQL runs this once, in an empty volume; Dagster's database is POSTGRES_DB.
CREATE DATABASE mlflow;
