package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// archiveReadme is in each archive. The README of the clone links to pages that are not there.
const archiveReadme = `Diaspora Streams %s

Copy the program "diaspora" into a folder of your PATH. On Linux and macOS:

  sudo install diaspora /usr/local/bin/

or without root:

  mkdir -p ~/bin && cp diaspora ~/bin/
  export PATH="$HOME/bin:$PATH"

and add the last line to ~/.profile (macOS: ~/.zprofile).

"diaspora example" runs the whole system once. "diaspora help" lists the commands,
and "diaspora help guide" shows every step from signing in to reading events. The
folder completions contains scripts for your shell. The folder man, which is not in
the archive for Windows, contains the manual.
`

// archives writes one archive for each target: a zip file for Windows, compressed tar files for the rest. Each has
// one folder, with the binary and what belongs to it.
func (r *release) archives(_ context.Context, chosen []target) error {
	pages, err := r.pages()
	if err != nil {
		return err
	}
	for _, t := range chosen {
		name := fmt.Sprintf("diaspora_%s_%s_%s", r.version, t.os, t.machine())
		files := []file{
			{name: filepath.Base(r.binary(t)), source: r.binary(t), mode: 0o755},
			{name: "README.txt", content: fmt.Appendf(nil, archiveReadme, r.version), mode: 0o644},
			{name: "LICENSE", source: filepath.Join(r.root, "LICENSE"), mode: 0o644},
			{name: "THIRD_PARTY_NOTICES", source: r.notices(), mode: 0o644},
		}
		for _, shell := range shells {
			files = append(files, file{name: "completions/diaspora." + shell.name, source: r.completion(shell.name), mode: 0o644})
		}
		if t.os != "windows" {
			for _, page := range pages {
				files = append(files, file{name: "man/" + page, source: filepath.Join(r.work, "man", page), mode: 0o644})
			}
		}
		for i := range files {
			files[i].name = name + "/" + files[i].name
		}
		write, suffix := writeTar, ".tar.gz"
		if t.os == "windows" {
			write, suffix = writeZip, ".zip"
		}
		if err := write(filepath.Join(r.out, name+suffix), files, r.time); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return nil
}

// notices returns the file with the licences of all modules in the binary.
func (r *release) notices() string {
	return filepath.Join(r.root, "cmd", "diaspora", "THIRD_PARTY_NOTICES")
}

// A file is one entry of an archive. If it has no source, it is a folder, or has the content.
type file struct {
	name    string
	source  string
	content []byte
	mode    os.FileMode
	uid     int // also the group
}

// read returns the bytes of the file.
func (f file) read() ([]byte, error) {
	if f.source == "" {
		return f.content, nil
	}
	return os.ReadFile(f.source)
}

// writeTar writes a compressed tar file.
func writeTar(name string, files []file, at time.Time) error {
	return compressTo(name, func(w io.Writer) error { return tarTo(w, files, at) })
}

// compressTo writes a file with what write writes, compressed, without a name or a time.
func compressTo(name string, write func(w io.Writer) error) (err error) {
	w, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	if err := write(z); err != nil {
		return err
	}
	return z.Close()
}

// tarTo writes a tar stream.
func tarTo(w io.Writer, files []file, at time.Time) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: int64(f.mode.Perm()), ModTime: at, Uid: f.uid, Gid: f.uid, Format: tar.FormatPAX}
		if f.mode&os.ModeSticky != 0 {
			header.Mode |= 0o1000
		}
		if f.mode.IsDir() {
			header.Typeflag = tar.TypeDir
			if err := t.WriteHeader(header); err != nil {
				return err
			}
			continue
		}
		content, err := f.read()
		if err != nil {
			return err
		}
		header.Typeflag, header.Size = tar.TypeReg, int64(len(content))
		if err := t.WriteHeader(header); err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	return t.Close()
}

// writeZip writes a zip file.
func writeZip(name string, files []file, at time.Time) (err error) {
	w, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	z := zip.NewWriter(w)
	for _, f := range files {
		header := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: at}
		header.SetMode(f.mode)
		entry, err := z.CreateHeader(header)
		if err != nil {
			return err
		}
		content, err := f.read()
		if err != nil {
			return err
		}
		if _, err := entry.Write(content); err != nil {
			return err
		}
	}
	return z.Close()
}

// checksums writes SHA256SUMS, which sha256sum -c reads, and prints the files with their sizes.
func (r *release) checksums() (err error) {
	entries, err := os.ReadDir(r.out) // in the order of their names
	if err != nil {
		return err
	}
	sums, err := os.Create(filepath.Join(r.out, "SHA256SUMS"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sums.Close()) }()
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.out, e.Name()))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(sums, "%x  %s\n", sha256.Sum256(content), e.Name()); err != nil {
			return err
		}
		fmt.Printf("%6.1f MB  %s\n", float64(len(content))/1e6, e.Name())
	}
	return nil
}
