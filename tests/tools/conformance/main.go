// Command conformance runs the Gateway API conformance suite against the cluster that KUBECONFIG names.
//
// The suite is a Go test that takes its options as flags. testing.Main makes a program of it, so that it is built
// once, kept with the other tools and run without its sources.
package main

import (
	"regexp"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func main() {
	suite := []testing.InternalTest{{Name: "Conformance", F: conformance.RunConformance}}
	testing.Main(regexp.MatchString, suite, nil, nil)
}
