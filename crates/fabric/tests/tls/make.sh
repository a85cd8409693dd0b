#!/bin/sh
# Makes the certificates of these tests, for a hundred years; their keys are open to everybody and guard nothing.
# By `openssl ca`, because it alone lets certificates begin in the past: clocks of test machines differ.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

cat >"$work/ca.cnf" <<EOF
[ca]
default_ca = tests
[tests]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
EOF
: >"$work/index"
printf '[req]\ndistinguished_name = none\nprompt = no\n[none]\n' >"$work/req.cnf"

request() { # FILE NAME EXTENSION...
    file=$1 name=$2
    shift 2
    for extension; do set -- "$@" -addext "$extension"; shift; done
    openssl req -config "$work/req.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" "$@" \
        -keyout "$file.key" -out "$work/$file.csr"
}

authority() { # FILE NAME
    request "$1" "$2" basicConstraints=critical,CA:TRUE keyUsage=critical,keyCertSign
    openssl ca -config "$work/ca.cnf" -batch -notext -selfsign -keyfile "$1.key" -startdate 20200101000000Z \
        -enddate 21200101000000Z -in "$work/$1.csr" -out "$1.pem"
}

certificate() { # FILE AUTHORITY END NAMES
    request "$1" "$1" "subjectAltName=$4" extendedKeyUsage=serverAuth,clientAuth
    openssl ca -config "$work/ca.cnf" -batch -notext -cert "$2.pem" -keyfile "$2.key" -startdate 20200101000000Z \
        -enddate "$3" -in "$work/$1.csr" -out "$1.pem"
}

authority ca 'authority of tests'
authority other-ca 'another authority'
certificate node ca 21200101000000Z IP:127.0.0.1,DNS:node.test
certificate elsewhere ca 21200101000000Z DNS:elsewhere.test
certificate stranger other-ca 21200101000000Z IP:127.0.0.1,DNS:node.test
certificate expired ca 20210101000000Z IP:127.0.0.1,DNS:node.test
rm ca.key other-ca.key
