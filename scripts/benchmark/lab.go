package main

import (
	"context"

	"benchmark/report"
)

// inLab takes the measures of the network lab.
func (f *flags) inLab(ctx context.Context, programs map[string]string, record func(report.Result)) error {
	return nil
}
