//go:build tools

// Package tools names h2spec, which plays every case of RFC 7540 and RFC 7541 against a server.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
