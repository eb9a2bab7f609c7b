package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/diaspora-streams/diaspora/internal/watch"
)

// input is one stream or several in a row, each with its name for errors.
type input struct {
	names    []string
	streams  []io.Reader
	terminal bool        // a person types it
	whole    bool        // each stream is one event
	info     fs.FileInfo // of the file that is being read; nil if it is none
	source   source
}

// openInput finds out that a file cannot be read before the first event is sent.
func (e *env) openInput(o produceOptions, files []string) (*input, error) {
	in := &input{whole: o.input == "file"}
	switch {
	case len(o.values) > 0 && len(files) > 0:
		return nil, misuse("", "produce: --value and files exclude each other")
	case len(o.values) > 0:
		for _, v := range o.values {
			// A value is one event, even if there are line feeds in it.
			in.names, in.streams = append(in.names, "--value"), append(in.streams, wholeValue(v))
		}
		return in, nil
	case len(files) == 0:
		files = []string{"-"}
	}
	for _, name := range files {
		if name == "-" {
			in.names, in.streams = append(in.names, "input"), append(in.streams, e.stdin)
			in.terminal = in.terminal || e.terminal(e.stdin)
			continue
		}
		f, err := os.Open(name)
		if err == nil {
			in.names, in.streams = append(in.names, name), append(in.streams, f)
			var info os.FileInfo
			if info, err = f.Stat(); err == nil && info.IsDir() {
				err = errors.New("it is a directory")
			}
		}
		if err != nil {
			in.Close()
			return nil, misuse("", "produce: read %s: %v; nothing was sent", name, innermost(err))
		}
	}
	return in, nil
}

// innermost returns the cause of an error without the name of a file, for texts that name it themselves.
func innermost(err error) error {
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		return cause.Err
	}
	return err
}

type wholeValue string

func (wholeValue) Read([]byte) (int, error) { return 0, io.EOF }

// Close closes the files.
func (in *input) Close() error {
	for _, s := range in.streams {
		if f, ok := s.(*os.File); ok && f != os.Stdin {
			f.Close()
		}
	}
	return nil
}

// each calls do with each line until do returns false, an end, or an error of reading.
func (in *input) each(limit int, do func(where string, number int, line []byte, err error) bool) error {
	defer in.source.end()
	for i, stream := range in.streams {
		if v, ok := stream.(wholeValue); ok {
			if !do(in.names[i], 0, []byte(v), nil) {
				return nil
			}
			continue
		}
		if in.whole {
			if err := in.readWhole(i, limit, do); err != nil {
				return err
			}
			continue
		}
		lines := watch.NewLineReader(in.source.begin(in.names[i], stream), limit)
		for {
			line, err := lines.Next()
			var bad *watch.LineError
			switch {
			case err == io.EOF:
			case err != nil && !errors.As(err, &bad):
				return fmt.Errorf("produce: read %s after line %d: %w", in.names[i], lines.Line, err)
			default:
				if bad != nil {
					err = bad.Err
				}
				if !do(in.names[i], lines.Line, line, err) {
					return nil
				}
				continue
			}
			break
		}
	}
	return nil
}

// readWhole calls do with all of a stream. What is too large is not read to its end.
func (in *input) readWhole(i, limit int, do func(where string, number int, line []byte, err error) bool) error {
	in.info = nil
	if f, ok := in.streams[i].(*os.File); ok && f != os.Stdin {
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("produce: read %s: %w", in.names[i], err)
		}
		in.info = info
	}
	content, err := io.ReadAll(io.LimitReader(in.source.begin(in.names[i], in.streams[i]), int64(limit)+1))
	if err != nil {
		return fmt.Errorf("produce: read %s: %w", in.names[i], err)
	}
	if len(content) > limit {
		content, err = nil, fmt.Errorf("it has more than %d bytes, which is the most that an event may have", limit)
	}
	do(in.names[i], 0, content, err)
	return nil
}
