#!/bin/sh
# The role `lacuna`: it owns its database, and may do nothing else. Run over the socket of a server that lets its superuser
# in there; may be run again. A database of an earlier composition, whose superuser is called `lacuna`, is brought to this.
set -eu
as() { # as ROLE: statements from stdin, in the database of the service
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$1" --dbname lacuna
}

if ! echo 'SELECT 1' | as postgres > /dev/null 2>&1; then
    echo "CREATE ROLE renaming SUPERUSER LOGIN" | as lacuna # nobody can rename himself
    echo "ALTER ROLE lacuna RENAME TO postgres" | as renaming
    echo "DROP ROLE renaming" | as postgres
fi

as postgres << 'SQL'
\getenv password POSTGRES_PASSWORD
SELECT 'CREATE ROLE lacuna' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lacuna') \gexec
ALTER ROLE lacuna LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
ALTER ROLE postgres PASSWORD NULL;
ALTER DATABASE lacuna OWNER TO lacuna;
REVOKE ALL ON DATABASE lacuna, postgres FROM PUBLIC;
ALTER SCHEMA public OWNER TO pg_database_owner;
SELECT format('ALTER TABLE %s OWNER TO lacuna', oid::regclass) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relowner <> 'lacuna'::regrole \gexec
SQL
