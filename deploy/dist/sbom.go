package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/generate/bin"
	"github.com/CycloneDX/cyclonedx-gomod/pkg/licensedetect/local"
	"github.com/rs/zerolog"
)

// sbom writes a software bill of materials in the CycloneDX format: every module that is linked into the binary
// of the first target, with its version, hash and licence.
func (r *release) sbom(_ context.Context, chosen []target) error {
	generator, err := bin.NewGenerator(r.binary(chosen[0]), bin.WithIncludeStdlib(true), bin.WithLicenseDetector(local.NewDetector(zerolog.Nop())), bin.WithVersionOverride(r.version), bin.WithLogger(zerolog.Nop()))
	if err != nil {
		return err
	}
	bom, err := generator.Generate()
	if err != nil {
		return fmt.Errorf("SBOM: %w", err)
	}
	bom.Metadata.Timestamp = r.time.Format(time.RFC3339)
	w, err := os.Create(filepath.Join(r.out, fmt.Sprintf("diaspora_%s.cdx.json", r.version)))
	if err != nil {
		return err
	}
	if err := cyclonedx.NewBOMEncoder(w, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		w.Close()
		return err
	}
	return w.Close()
}
