//go:build tools

// Package tools names the workload of the Gateway API mesh conformance suite: its image echo-advanced is made of
// Istio's echo server and client.
package tools

import (
	_ "istio.io/istio/pkg/test/echo/cmd/client"
	_ "istio.io/istio/pkg/test/echo/cmd/server"
)
