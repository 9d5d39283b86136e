//go:build tools

// Package tools names the cluster DNS server that the embedded test cluster runs.
package tools

import _ "github.com/coredns/coredns"
